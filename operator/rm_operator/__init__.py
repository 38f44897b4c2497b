"""The operator of RM Abstract: it watches the four kinds, plans, and applies."""
