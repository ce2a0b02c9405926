from adapters.dependency_injector import *
