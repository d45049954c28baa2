"""Thin adapters to what spreads work over machines: Ray Data and Ray Serve. Importing this loads neither."""
