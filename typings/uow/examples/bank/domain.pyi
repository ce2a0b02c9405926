from examples.bank.domain import *
