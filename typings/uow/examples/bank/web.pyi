from examples.bank.web import *
