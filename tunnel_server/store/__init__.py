"""What must survive a restart: tokens, issued certificates, revocations, events, audit. ``docs/store.md``."""
