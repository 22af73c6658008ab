"""Attacks by single clients, with and without the limits of the bridge, and what honest clients see meanwhile."""
