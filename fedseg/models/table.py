"""Every network by `[model] name`; a new one is one more file and one more line here."""

from fedseg.models.classifiers import CNN_SMALL, RESNET18
from fedseg.models.dynunet import DYNUNET
from fedseg.models.encoder import UNET_RESNET18
from fedseg.models.monet import MONET
from fedseg.models.network import Network
from fedseg.models.segresnet import SEGRESNET
from fedseg.models.unet import UNET, UNET_SMALL

NETWORKS: dict[str, Network] = {
    "unet-small": UNET_SMALL,
    "unet": UNET,
    "segresnet": SEGRESNET,
    "dynunet": DYNUNET,
    "monet": MONET,
    "unet-resnet18": UNET_RESNET18,
    "cnn-small": CNN_SMALL,
    "resnet18": RESNET18,
}
