/* For AVX2 ========================================================================================================= */

#include <immintrin.h>
enum { PIXELS = 2 };

/* VPMADDWD: bytes and weights are made 16 bits wide, multiplied, and added in pairs. (VPMADDUBSW multiplies twice as
   many as bytes, and adds them in 16 bits: two products of 255 * 127 do not fit.) "quads" times 4 channels. */
INLINE void multiply_quads(int quads, const Windows *windows, const int8_t *weights, const int32_t *bias,
                           int32_t sums[][LANES])
{
    const uint8_t *x[2] = {windows->start[0], windows->start[windows->count - 1]};
    __m256i total[2][4];
    for (int p = 0; p < 2; p++)
        for (int q = 0; q < quads; q++)
            total[p][q] = _mm256_setzero_si256();
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4, weights += 16 * quads) {
            __m256i four_bytes[2];
            for (int p = 0; p < 2; p++) {
                int32_t bytes;
                memcpy(&bytes, x[p] + k, 4);
                four_bytes[p] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(bytes)));
            }
            for (int q = 0; q < quads; q++) {
                const __m128i bytes = _mm_loadu_si128((const __m128i *)(weights + 16 * q));
                const __m256i four_weights = _mm256_cvtepi8_epi16(bytes);
                for (int p = 0; p < 2; p++)
                    total[p][q] = _mm256_add_epi32(total[p][q], _mm256_madd_epi16(four_bytes[p], four_weights));
            }
        }
        x[0] += windows->pitch;
        x[1] += windows->pitch;
    }
    for (int p = 0; p < 2; p++)
        for (int q = 0; q < quads; q++) { /* two sums are left of each channel */
            const __m256i both = _mm256_hadd_epi32(total[p][q], total[p][q]);
            const __m256i four = _mm256_permute4x64_epi64(both, 0xD8);
            const __m128i start = _mm_loadu_si128((const __m128i *)(bias + 4 * q));
            _mm_storeu_si128((__m128i *)(sums[p] + 4 * q), _mm_add_epi32(start, _mm256_castsi256_si128(four)));
        }
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

/* Where a layer is "narrow", 16 bits of each factor are multiplied at a time. With sum = high * 2^16 + low,
   (sum * multiplier) >> 16 is high * multiplier + ((low * multiplier) >> 16). PMADDWD takes the multiplier for signed,
   which makes it 2^16 too small, hence the term in the middle. */

/* Eight sums of a narrow layer. */
INLINE __m256i finish_eight(const Convolution *layer, const Function *function, __m256i sum, __m256i multiplier,
                            __m256i shift)
{
    const __m256i one = _mm256_set1_epi32(1), half = _mm256_srli_epi32(_mm256_sllv_epi32(one, shift), 1);
    sum = _mm256_sll_epi32(sum, _mm_cvtsi32_si128(layer->lift));
    const __m256i high = _mm256_madd_epi16(sum, _mm256_slli_epi32(multiplier, 16));
    const __m256i middle = _mm256_and_si256(sum, _mm256_set1_epi32(-65536));
    const __m256i low = _mm256_mulhi_epu16(sum, multiplier);
    const __m256i product = _mm256_add_epi32(_mm256_add_epi32(high, middle), low);
    __m256i x = _mm256_srav_epi32(_mm256_add_epi32(product, half), shift);
    if (layer->ties) {
        const __m256i rest = _mm256_and_si256(product, _mm256_sub_epi32(_mm256_add_epi32(half, half), one));
        const __m256i not_half = _mm256_or_si256(_mm256_xor_si256(rest, half), _mm256_mullo_epi16(sum, multiplier));
        const __m256i tie = _mm256_cmpeq_epi32(not_half, _mm256_setzero_si256());
        x = _mm256_sub_epi32(x, _mm256_and_si256(_mm256_and_si256(x, one), tie));
    }
    const __m256i first = _mm256_set1_epi32(function->first);
    x = _mm256_min_epi32(_mm256_max_epi32(x, first), _mm256_set1_epi32(function->last));
    const __m128i function_shift = _mm_cvtsi32_si128(function->shift);
    if (!function->table) {
        const __m256i rise = _mm256_mullo_epi32(x, _mm256_set1_epi32(function->slope));
        const __m256i y = _mm256_sra_epi32(_mm256_add_epi32(rise, _mm256_set1_epi32(function->offset)), function_shift);
        if (!function->step)
            return y;
        const __m256i step = _mm256_set1_epi32(function->step);
        const __m256i above = _mm256_sub_epi32(_mm256_mullo_epi32(y, step), x);
        const __m256i between = _mm256_cmpeq_epi32(above, _mm256_srli_epi32(step, 1));
        return _mm256_andnot_si256(_mm256_and_si256(between, one), y);
    }
    const __m256i place = _mm256_sub_epi32(x, first), entry = _mm256_srl_epi32(place, function_shift);
    const __m256i rest = _mm256_sub_epi32(place, _mm256_sll_epi32(entry, function_shift));
    /* value, cut, value of the next entry and its cut, in four bytes */
    const __m256i found = _mm256_i32gather_epi32((const int *)(const void *)function->table, entry, 2);
    const __m256i cut = _mm256_and_si256(_mm256_srli_epi32(found, 8), _mm256_set1_epi32(255));
    const __m256i value = _mm256_blendv_epi8(_mm256_srli_epi32(found, 16), found, _mm256_cmpgt_epi32(cut, rest));
    return _mm256_and_si256(value, _mm256_set1_epi32(255));
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    for (int p = 0; p < count; p++, output += layer->out_step) {
        int c = 0;
        for (; layer->narrow && c + 8 <= width; c += 8) {
            const __m256i sum = _mm256_loadu_si256((const __m256i *)(sums[p] + c));
            const __m256i multiplier = _mm256_loadu_si256((const __m256i *)(layer->multiplier + channel + c));
            const __m256i shift = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(layer->shift + channel + c)));
            const __m256i shift_left = _mm256_add_epi32(shift, _mm256_set1_epi32(layer->lift - 16));
            const __m256i x = finish_eight(layer, layer->function, sum, multiplier, shift_left);
            const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            _mm_storel_epi64((__m128i *)(output + c), _mm_packus_epi16(words, words));
        }
        finish_plainly(layer, channel + c, width - c, sums[p] + c, output + c);
    }
}
