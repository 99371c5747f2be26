"""The reward service: how good rollouts are, dimension by dimension."""
