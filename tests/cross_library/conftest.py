"""What all peers share."""

import sys

# transformers imports torchvision where it is installed, for images; one made for another torch can't be imported and
# takes transformers down with it. Here and not in a fixture: other peers import transformers too, which remembers.
sys.modules["torchvision"] = None
