from examples.bank.teller import *
