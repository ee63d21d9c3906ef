"""What every chapter uses to speak to a reader: claims, figures, tables."""
