/* No kernel for this processor ===================================================================================== */

enum { PIXELS = 1 };

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
    multiply_plainly(windows, weights, packed, bias, width, sums);
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    for (int p = 0; p < count; p++, output += layer->out_step)
        finish_plainly(layer, channel, width, sums[p], output);
}
