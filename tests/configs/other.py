"""Another module with a class of the same name as one of the toys."""


class Leaf:
    pass
