"""The process that holds keys: `server` speaks the Keyless format, a token makes the signatures."""
