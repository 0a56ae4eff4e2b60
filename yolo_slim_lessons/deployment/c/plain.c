/* In plain C, for any processor ==================================================================================== */

/* Weight number "i" of those that lie two in a byte. */
INLINE int unpacked(const int8_t *weights, int i)
{
    const int nibble = (i % 2 ? (uint8_t)weights[i / 2] >> 4 : weights[i / 2]) & 15;
    return (nibble ^ 8) - 8; /* n with the sign of its 4 bits */
}

/* sums[p][c] = bias[c] + all products of window p and the weights of channel c, for a block of "width" channels. No sum
   leaves 32 bits: that was proven from the weights when this file was written. */
OPTIONAL void multiply_plainly(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias,
                               int width, int32_t sums[][LANES])
{
    for (int p = 0; p < windows->count; p++) {
        const int8_t *w = weights;
        for (int c = 0; c < width; c++)
            sums[p][c] = bias[c];
        for (int row = 0; row < windows->rows; row++)
            for (int k = 0; k < windows->length; k += 4) {
                const uint8_t *x = windows->start[p] + row * windows->pitch + k;
                if (packed)
                    for (int c = 0; c < width; c++, w += 2)
                        sums[p][c] += x[0] * unpacked(w, 0) + x[1] * unpacked(w, 1) + x[2] * unpacked(w, 2)
                                      + x[3] * unpacked(w, 3);
                else
                    for (int c = 0; c < width; c++, w += 4)
                        sums[p][c] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
    }
}

/* sum * multiplier / 2^shift, rounded to nearest, ties to even. */
INLINE int64_t rescale(int32_t sum, uint32_t multiplier, int shift)
{
    const int64_t product = (int64_t)sum * multiplier;
    const int64_t odd = (product >> shift) & 1;
    return (product + ((int64_t)1 << (shift - 1)) - 1 + odd) >> shift;
}

INLINE uint8_t look_up(const Function *function, int32_t x)
{
    const int32_t place = x - function->first;
    const Entry *entry = function->table + (place >> function->shift);
    const int32_t rest = place & ((1 << function->shift) - 1);
    return rest < entry->cut ? entry->value : entry[1].value;
}

INLINE uint8_t on_line(const Function *function, int32_t x)
{
    const int32_t y = (x * function->slope + function->offset) >> function->shift;
    const int between = function->step && 2 * (y * function->step - x) == function->step;
    return (uint8_t)(between ? y & ~1 : y); /* the even one of two that are equally near */
}

/* Sums of a pixel to its bytes, one at a time. */
OPTIONAL void finish_plainly(const Convolution *layer, int channel, int width, const int32_t *sums, uint8_t *output)
{
    const Function *function = layer->function;
    for (int c = 0; c < width; c++) {
        const int64_t scaled = rescale(sums[c], layer->multiplier[channel + c], layer->shift[channel + c]);
        const int64_t above = scaled < function->first ? function->first : scaled;
        const int32_t x = (int32_t)(above > function->last ? function->last : above);
        output[c] = function->table ? look_up(function, x) : on_line(function, x);
    }
}
