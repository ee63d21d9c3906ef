"""Networks of other people: from `transformers`, from a `config.json`, from a prompt file of `peft`."""
