from examples.bank.port import *
