from examples.bank import *
