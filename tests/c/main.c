/* Classifies all images of a file, and writes the logits to another one: for tests of export_c. */

#include <stdio.h>

#include "model.h"

static uint8_t image[MODEL_HEIGHT * MODEL_WIDTH * MODEL_CHANNELS];
static int64_t logits[MODEL_CLASSES];

int main(void)
{
    FILE *images = fopen("images.bin", "rb"), *answers = fopen("answers.bin", "wb");
    if (!images || !answers)
        return 1;
    while (fread(image, sizeof image, 1, images) == 1) {
        int64_t best = model_run(image, logits);
        fwrite(logits, sizeof logits, 1, answers);
        fwrite(&best, sizeof best, 1, answers);
    }
    return fclose(answers) != 0;
}
