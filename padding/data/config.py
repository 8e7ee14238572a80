# SPDX-License-Identifier: Apache-2.0
"""Keys of the input pipeline: those of the official Mask2Former YAML files, and a few of ours."""

from detectron2.config import CfgNode


def add_input_config(cfg: CfgNode) -> None:
    """Add the INPUT keys in place; all defaults are the official ones where such a key exists."""
    # Name in padding.data.mappers: a class of MAPPER_REGISTRY or one of the official aliases.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # "crop" augmentation: colour jitter of the Single Shot Detector after resizing and cropping.
    cfg.INPUT.COLOR_AUG_SSD = False
    # "crop" augmentation: largest share of the crop one class may cover, in (0, 1]; 1 switches the rule off.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # "crop" augmentation: side in pixels to which crops are padded (in spite of its official name); -1: no padding.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # "jitter" augmentation: side in pixels of the fixed output, and range of the random scale relative to it.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    # Ours. Lowest and highest value of images of more than 8 bits, which become black and white: (0, 4095) for a camera
    # of 12 bits. (): 16-bit grey has the full range of its type, 32-bit integers and floats are an error.
    cfg.INPUT.VALUE_RANGE = ()
    # Grey value in [0, 255] of padded image regions; their labels are always void.
    cfg.INPUT.IMAGE_PAD_VALUE = 128
    # Panoptic segments that the crop left without a pixel stay targets, as in PADing's and Mask2Former's code: queries
    # are matched to them, and learn noise.
    cfg.INPUT.KEEP_EMPTY_SEGMENTS = False
    # Semantic training samples also carry one binary mask per class, as mask classification needs them.
    cfg.INPUT.SEMANTIC_MASKS = True
    # Continuous maps read beside the image: for each name the entry "<name>_file_name" of the data set.
    cfg.INPUT.EXTRA_MAPS = []
    # Samples carry "valid" (H, W) bool, False where there is no image: padding and the corners of a rotation.
    cfg.INPUT.VALID_MASK = False
    # Rotate by up to so many degrees to either side before cropping; 0: off. What no pixel reaches is void in labels,
    # the mean pixel in images and False in "valid".
    cfg.INPUT.ROTATION = 0.0
    # Crops are redrawn, up to ten times, until they hold so many labeled pixels (scribbles); 0: off.
    cfg.INPUT.CROP.MIN_LABELED = 0
    # Samples carry "image_strong", the same view with its colours changed and blurred (UniMatch's strong augmentation).
    # STRONG_VIEWS: so many, drawn one by one; the further ones are "image_strong_2", "image_strong_3", ...
    cfg.INPUT.STRONG_VIEW = False
    cfg.INPUT.STRONG_VIEWS = 1
    # "scale_crop" augmentation: factors on the image's size (INPUT.SCALE_SAMPLING "range": lowest and highest); then
    # crops of CROP.SIZE pixels (multiples of 32 fit every backbone), padded where the image is smaller. The mapper
    # "semantic_resize" brings whole images to CROP.SIZE instead.
    cfg.INPUT.SCALE_FACTORS = (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)
    cfg.INPUT.SCALE_SAMPLING = "choice"
    # Megabytes that one file may unpack to, four bytes for each pixel of an image; a larger one is an error, raised
    # before it takes the memory. 256: 8192 x 8192 pixels.
    cfg.INPUT.MAX_UNPACKED_MB = 256
    # A JPEG that ends early is filled up with grey; False: an error that names it.
    cfg.INPUT.ALLOW_TRUNCATED_JPEG = False
    # Which images of DATASETS.TRAIN have labels: a folder below datasets/splits such as "voc/cps_blender/1_8", or any
    # folder with labeled.txt and unlabeled.txt, one image id a line. "": all, and there are no unlabeled images.
    cfg.DATASETS.SPLIT = ""
    # Where the ids of unlabeled.txt are looked up; (): in DATASETS.TRAIN. Without SPLIT: the unlabeled images.
    cfg.DATASETS.TRAIN_UNLABELED = ()
    # Before the first iteration look over all data sets of the run and evaluate two images of every test set.
    cfg.DATASETS.CHECK_AT_START = True
    _add_saliency_keys(cfg)
    _add_own_data_keys(cfg)


def _add_saliency_keys(cfg: CfgNode) -> None:
    """Images with saliency, beside those with class labels."""
    # Sets with saliency. With SPLIT, sets that know its images are reduced to those of unlabeled.txt, so that no image
    # has both kinds of labels; others (DUTS) are used as they are.
    cfg.DATASETS.TRAIN_SALIENCY = ()
    # "paired": two streams, every image has one kind of label. "joint": images of TRAIN that TRAIN_SALIENCY (or their
    # own entry) knows the saliency of; every image has both.
    cfg.DATASETS.SALIENCY_BATCHES = "paired"
    node = CfgNode()
    cfg.INPUT.SALIENCY = node
    # Of images with saliency alone: "resize" the whole image to SIZE, or "scale_crop": scale by one of SCALE_FACTORS,
    # then crop (or pad to) CROP. RANDOM_FLIP and COLOR_AUG_SSD hold for them too.
    node.MODE = "resize"
    node.SIZE = (352, 352)  # height, width
    node.SCALE_FACTORS = (0.75, 1.0, 1.25)
    node.CROP = (320, 320)  # height, width
    # Saliency above 128 of 255 becomes 1, the rest 0; False: learn the grey values.
    node.BINARIZE = True


def _add_own_data_keys(cfg: CfgNode) -> None:
    """A user's own data, registered as "own_train", "own_val" and so on; paths as on the command line."""
    node = CfgNode()
    cfg.DATASETS.FOLDERS = node
    node.IMAGES = ""  # folder of the images; "": no own data
    node.LABELS = ""  # folder of index images with the images' names; unlabeled images need none
    node.LABEL_SUFFIX = ".png"  # in place of the image's ending: "_mask.png" for a.jpg and a_mask.png
    node.SUBFOLDERS = False  # images in folders below count too; their labels lie in folders of the same names
    node.CLASSES = ""  # text file, one class name a line, that of label 0 first
    node.VAL_IMAGES = ""  # images and labels to evaluate on
    node.VAL_LABELS = ""
    node.VAL_LIST = ""  # instead of these, a text file of ids (file names without ending) out of IMAGES
    # Value of each class in the label images, or a list of its values: (0, 255) for black and white masks of two
    # classes. (): class n has the value n.
    node.LABEL_VALUES = ()
    node.VOID_VALUES = ()  # values that mean nothing; 255 does too, unless it is that of a class
    # Names of classes that training must not know (zero-shot): void in "own_train", which is labelled with the others
    # alone; "own_val_unseen" counts them alone.
    node.UNSEEN = ()
    # Strokes in place of dense labels in training: a folder of index images, void where nobody drew; images without one
    # are left out. LABELS, where given, are then "own_train_dense" and those of VAL_LIST.
    node.SCRIBBLES = ""
    # COCO's JSON in place of LABELS: objects, or with PANOPTIC, the folder of the PNGs, segments. CLASSES then chooses
    # and orders classes of the file by name, "": all of it. VAL_IMAGES and VAL_PANOPTIC "": the folders of training.
    node.ANNOTATIONS = ""
    node.PANOPTIC = ""
    node.VAL_ANNOTATIONS = ""
    node.VAL_PANOPTIC = ""
    # Saliency maps, 0 to 255, of IMAGES or of images of their own: "own_train_saliency", and "own_val_saliency" of
    # VAL_LIST or of the folders to evaluate on. Images without a map are left out.
    node.SALIENCY = ""
    node.SALIENCY_IMAGES = ""
    node.SALIENCY_SUFFIX = ".png"  # in place of the image's ending
    node.VAL_SALIENCY = ""
    node.VAL_SALIENCY_IMAGES = ""
