"""Memory limits of prompt tuning: networks, bounds, measurements and the claims that compare them."""
