from examples.bank.cli import *
