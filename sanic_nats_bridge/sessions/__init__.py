"""The sessions of one worker, and the subscriptions of each."""
