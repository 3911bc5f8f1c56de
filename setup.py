"""Everything is declared in setup.cfg; this file is what build front ends look for."""

from setuptools import setup

setup()
