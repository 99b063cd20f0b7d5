"""The families, one module each: settings from config.json, and the table of names."""
