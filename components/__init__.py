"""What TorchX needs to schedule the app: job definitions, hardware profiles, preflight. Never imports torch."""
