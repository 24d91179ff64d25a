def akin(a, b):
    return False
def train(sweep, chosen, cache):
    raise NotImplementedError
