"""Proa: an operating system for servers, and the tools to make, ship and run it."""

__version__ = "0.1.0"
