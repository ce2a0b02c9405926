from adapters.sqlalchemy import *
