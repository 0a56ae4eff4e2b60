"""Class and probability of a picture, with a file of slim.export_onnx(..., preprocess=True). Neither torch nor slim.

python predict_without_torch.py model.onnx picture.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, picture = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")  # upright, whichever way the phone was held
probabilities = session.run(None, {"pictures": np.asarray(image)[None]})[0][0]
best = probabilities.argmax()
print(f"{class_names[best]} {probabilities[best]:.1%}")
