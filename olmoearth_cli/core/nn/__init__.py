"""The networks, written plainly; `core.plan` runs them fast."""
