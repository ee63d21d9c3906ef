"""What became of claims, for readers: a box for a chapter, a line for a claim, tables for the scoreboard."""

import html
import re

# In the order in which a reader should see them.
VERDICTS = ("violated", "pending", "missed", "undecided", "not refuted", "holds", "hit")
SYMBOLS = {"<=": "≤", "<": "<", ">=": "≥", "==": "="}


def number(value) -> str:
    """A number for a table: whole numbers below a million in full, else four significant digits; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(value, value)
    if isinstance(value, list):
        return f"[{', '.join(map(number, value))}]" if len(value) <= 2 else f"{len(value)} values"
    whole = float(value).is_integer() and abs(value) < 1e6
    return readable(f"{int(value):,}" if whole else f"{value:.4g}")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """10⁻⁵ for −5."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def readable(text: str) -> str:
    """Text with powers of ten and minus signs as a book prints them: 3.1e-05 as 3.1·10⁻⁵."""
    text = re.sub(r"(?<=\d)e([+-]\d+)\b", lambda power: "·" + power_of_ten(int(power[1])), text)
    return re.sub(r"(?<![\w.)\]])-(?=\d)", "−", text)


class Verdicts:
    """What became of a list of claims: a box in a notebook (HTML), a table in text (Markdown)."""

    HEADER = (
        "verdict", "claim", "bound or prediction", "measured", "interval", "reported from", "closest",
        "points that can fail",
    )  # fmt: skip

    def __init__(self, claims: list[dict], *, linked: bool = True):
        self.claims, self.linked = claims, linked  # are they on the scoreboard?

    def counts(self) -> dict[str, int]:
        """How many claims have each verdict; verdicts that do not occur are left out."""
        found = [claim["verdict"] for claim in self.claims]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}

    def summary(self) -> str:
        """One line, such as `3 hold, 1 not refuted, 1 hit`."""
        words = {"holds": "hold" if self.counts().get("holds", 0) > 1 else "holds"}
        counted = [f"{count} {words.get(verdict, verdict)}" for verdict, count in self.counts().items()]
        return f"{len(self.claims)} claim{'' if len(self.claims) == 1 else 's'}: " + (", ".join(counted) or "none yet")

    def parts(self) -> list[tuple[str, str]]:
        """What a reader wants to know: are the theorems intact, and, apart from that, were the forecasts right?"""
        theorems = [claim for claim in self.claims if claim["kind"] == "theorem"]
        forecasts = [claim["verdict"] for claim in self.claims if claim["kind"] == "prediction"]
        exact = sum(claim["evidence"] == "exact" for claim in theorems)
        against = sum(claim["verdict"] == "violated" for claim in theorems)
        parts = []
        if theorems:
            checks = f"{exact} exact, {len(theorems) - exact} sampled, {against or 'none'} against"
            parts.append(("Checks of theorems", f"{checks} {'them' if len(theorems) > 1 else 'it'}"))
        if forecasts:
            counted = [f"{forecasts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in forecasts]
            parts.append(("Forecasts, written down before the measurement", ", ".join(counted)))
        return parts or [("Verdict", "no claims yet")]

    @staticmethod
    def row(claim: dict) -> tuple[str, ...]:
        """The cells of one claim, as text, in the order of `HEADER`."""
        if claim["kind"] == "prediction":
            percent = claim["tolerance_kind"] == "relative"
            tolerance = f"{100 * claim['tolerance']:.4g} %" if percent else number(claim["tolerance"])
            bound = f"{number(claim['predicted'])} ± {tolerance}"
        else:
            bound = f"{SYMBOLS[claim['relation']]} {number(claim['bound'])}"
            if claim.get("tolerance"):
                bound += f" (tolerance {number(claim['tolerance'])})"
        points = number(claim["points"])
        if claim["points"] < claim["points_total"]:
            points += f" of {number(claim['points_total'])}"
        if claim.get("violated_points"):
            points += f", {claim['violated_points']} fail"
        if claim.get("undecided_points"):
            points += f", {claim['undecided_points']} undecided"
        closest = claim.get("closest")
        return (
            claim["verdict"],
            f"{claim['theorem']}: {claim['statement']}",
            bound,
            number(claim.get("measured")),
            number(claim.get("interval")),
            number(claim.get("detectable")),
            "–" if closest is None else f"{100 * closest:.3g} %",
            points,
        )

    def _repr_markdown_(self) -> str:
        return f"**{self.summary()}**\n\n" + markdown_table(self.HEADER, [self.row(claim) for claim in self.claims])

    def _repr_html_(self) -> str:
        shown = sorted(self.claims, key=lambda claim: (VERDICTS.index(claim["verdict"]), claim["key"]))
        worst = "violated" if "violated" in self.counts() else "good"
        head = "".join(f"<th>{cell}</th>" for cell in self.HEADER)
        body = ""
        for claim in shown:
            verdict, text, *rest = self.row(claim)
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
            words = mathjax(html.escape(text))
            words = f'<a href="{scoreboard_row(claim)}">{words}</a>' if self.linked else words
            body += f"<tr><td>{mark(verdict)}</td><td>{words}</td>{cells}</tr>"
        parts = "".join(f"<p><strong>{name}.</strong> {text}.</p>" for name, text in self.parts())
        return (
            f'<div class="verdict-box verdict-box-{worst} mathjax_process">'
            f"{parts}"
            f"<details><summary>Every claim of this chapter</summary>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            "</details></div>"
        )

    def __repr__(self) -> str:
        return self.summary()


class Lines:
    """Claims of a chapter, one line each, for the place where they were measured; each line is an anchor."""

    def __init__(self, claims: list[dict], *, linked: bool = True):
        self.claims, self.linked = claims, linked

    def _repr_html_(self) -> str:
        items = ""
        for claim in self.claims:
            verdict, text, bound, measured, *_ = Verdicts.row(claim)
            bound = bound.split(" (tolerance")[0]  # of rounding; the scoreboard has it
            found = f"{'predicted ' if claim['kind'] == 'prediction' else ''}{bound}, measured {measured}"
            text = mathjax(html.escape(text.rstrip(".")))
            link = f' <a href="{scoreboard_row(claim)}" aria-label="This claim on the scoreboard">details</a>'
            items += (
                f'<li id="claim-{html.escape(claim["key"])}">{mark(verdict)} {text}: {html.escape(found)}.'
                f"{link if self.linked else ''}</li>"
            )
        return f'<ul class="claim-lines mathjax_process">{items}</ul>'

    def __repr__(self) -> str:
        return "\n".join(" | ".join(Verdicts.row(claim)[:4]) for claim in self.claims)


def mark(verdict: str) -> str:
    """The coloured word for a verdict."""
    return f'<span class="verdict verdict-{verdict.replace(" ", "-")}">{verdict}</span>'


def scoreboard_row(claim: dict) -> str:
    """Where a chapter's page finds this claim on the scoreboard."""
    return html.escape(f"../scoreboard.html#{claim['chapter']}--{claim['key']}")


def mathjax(text: str) -> str:
    """Turn $...$ into the delimiters that MathJax reads in raw HTML; numbers outside are written as a book does."""
    pieces = text.split("$")
    if len(pieces) % 2 == 0:  # an unpaired dollar is a dollar
        return readable(text)
    return "".join(rf"\({piece}\)" if index % 2 else readable(piece) for index, piece in enumerate(pieces))


def markdown_table(header, rows) -> str:
    """A Markdown table; bars and line breaks inside cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)  # fmt: skip
