"""What cifar_ViT.py and cifar_MetaFormer.py share: images, and how a classifier of them is trained and judged."""
