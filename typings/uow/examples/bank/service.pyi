from examples.bank.service import *
