"""The keys of a cloud-config: per module what they say (a frozen dataclass) and how it is read."""
