"""The language that all houses share: pure, no network, no subprocess, no clock."""
