from examples import *
