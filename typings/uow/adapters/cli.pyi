from adapters.cli import *
