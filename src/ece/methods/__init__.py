"""Editing methods: recipes on one engine, by name."""
