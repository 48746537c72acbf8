"""Adapters behind an HTTP interface: many on one backbone, batched across requests, with a page to try them."""
