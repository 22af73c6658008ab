"""The sessions of one worker and their subscriptions."""
