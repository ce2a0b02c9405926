from examples.bank.container import *
