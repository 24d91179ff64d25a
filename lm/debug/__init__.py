"""Diagnosis of runs after the fact: replay, bisection, coordinate checks."""
