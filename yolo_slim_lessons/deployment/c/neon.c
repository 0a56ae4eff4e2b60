/* For NEON with dot products ======================================================================================= */

#include <arm_neon.h>
enum { PIXELS = 4 };

/* SDOT: 16 bytes times 16 weights, four products each added to 4 sums. It takes signed bytes: we give it x - 128, and
   add what is missing, 128 times the sum of the weights, which the same instruction computes. */
INLINE void multiply_quads(int quads, const Windows *windows, const int8_t *weights, const int32_t *bias,
                           int32_t sums[][LANES])
{
    const uint8_t *x[4];
    int32x4_t total[4][4], missing[4];
    for (int p = 0; p < 4; p++)
        x[p] = windows->start[p < windows->count ? p : 0];
    for (int q = 0; q < quads; q++) {
        missing[q] = vdupq_n_s32(0);
        for (int p = 0; p < 4; p++)
            total[p][q] = vld1q_s32(bias + 4 * q);
    }
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4, weights += 16 * quads) {
            int8x16_t four_bytes[4];
            for (int p = 0; p < 4; p++) {
                uint32_t bytes;
                memcpy(&bytes, x[p] + k, 4);
                four_bytes[p] = vreinterpretq_s8_u32(vdupq_n_u32(bytes ^ 0x80808080u));
            }
            for (int q = 0; q < quads; q++) {
                const int8x16_t four_weights = vld1q_s8(weights + 16 * q);
                missing[q] = vdotq_s32(missing[q], four_weights, vdupq_n_s8(-128));
                for (int p = 0; p < 4; p++)
                    total[p][q] = vdotq_s32(total[p][q], four_weights, four_bytes[p]);
            }
        }
        for (int p = 0; p < 4; p++)
            x[p] += windows->pitch;
    }
    for (int p = 0; p < 4; p++)
        for (int q = 0; q < quads; q++)
            vst1q_s32(sums[p] + 4 * q, vsubq_s32(total[p][q], missing[q]));
}

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
    if (!packed && width == 16)
        multiply_quads(4, windows, weights, bias, sums);
    else if (!packed && width == 8)
        multiply_quads(2, windows, weights, bias, sums);
    else
        multiply_plainly(windows, weights, packed, bias, width, sums);
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    for (int p = 0; p < count; p++, output += layer->out_step)
        finish_plainly(layer, channel, width, sums[p], output);
}
