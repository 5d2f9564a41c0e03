"""Whole jobs as plain functions, and the engines that wire them."""
