from ._errors import EntityNotFound, MultipleEntitiesFound, SpecificationError, UnitOfWorkError
__all__ = ["EntityNotFound", "MultipleEntitiesFound", "SpecificationError", "UnitOfWorkError"]
