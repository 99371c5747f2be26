"""The navigator service: plans by imagining."""
