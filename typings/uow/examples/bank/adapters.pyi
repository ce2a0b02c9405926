from examples.bank.adapters import *
