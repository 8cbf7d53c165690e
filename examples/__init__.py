"""The demo, and what it deploys."""
