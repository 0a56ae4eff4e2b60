/* For AVX-512 with VNNI ============================================================================================ */

#include <immintrin.h>
enum { PIXELS = 8 };

INLINE __m512i load_weights(const int8_t *weights, __mmask16 lanes, int packed)
{
    if (!packed)
        return _mm512_maskz_loadu_epi32(lanes, weights);
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi16(lanes, weights));
    const __m512i low = _mm512_and_si512(pairs, _mm512_set1_epi16(0x000F));
    const __m512i high = _mm512_and_si512(_mm512_slli_epi16(pairs, 4), _mm512_set1_epi16(0x0F00));
    const __m512i eight = _mm512_set1_epi8(8); /* (n ^ 8) - 8 is n with the sign of its 4 bits */
    return _mm512_sub_epi8(_mm512_xor_si512(_mm512_or_si512(low, high), eight), eight);
}

/* VPDPBUSD: 64 bytes times 64 weights, four products each added to 16 sums. "pixels" and "packed" are constants. */
INLINE void multiply_pixels(int pixels, int packed, const Windows *windows, const int8_t *weights, const int32_t *bias,
                            int width, int32_t sums[][LANES])
{
    const __mmask16 lanes = (__mmask16)((1u << width) - 1);
    const uint8_t *x[8];
    __m512i total[8];
    for (int p = 0; p < pixels; p++) {
        x[p] = windows->start[p < windows->count ? p : 0];
        total[p] = _mm512_maskz_loadu_epi32(lanes, bias);
    }
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4) {
            const __m512i four_weights = load_weights(weights, lanes, packed);
            weights += packed ? 2 * width : 4 * width;
            for (int p = 0; p < pixels; p++) {
                int32_t four_bytes;
                memcpy(&four_bytes, x[p] + k, 4);
                total[p] = _mm512_dpbusd_epi32(total[p], _mm512_set1_epi32(four_bytes), four_weights);
            }
        }
        for (int p = 0; p < pixels; p++)
            x[p] += windows->pitch;
    }
    for (int p = 0; p < pixels; p++)
        _mm512_storeu_si512(sums[p], total[p]);
}

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
    if (packed)
        multiply_pixels(8, 1, windows, weights, bias, width, sums);
    else if (windows->count > 4)
        multiply_pixels(8, 0, windows, weights, bias, width, sums);
    else
        multiply_pixels(4, 0, windows, weights, bias, width, sums);
}

/* Where a layer is "narrow", 16 bits of each factor are multiplied at a time. With sum = high * 2^16 + low,
   (sum * multiplier) >> 16 is high * multiplier + ((low * multiplier) >> 16). PMADDWD takes the multiplier for signed,
   which makes it 2^16 too small, hence the term in the middle. */

INLINE __m512i rescale_narrow(__m512i sum, __m512i multiplier, __m512i shift, __m512i half, int ties)
{
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i high = _mm512_madd_epi16(sum, _mm512_slli_epi32(multiplier, 16));
    const __m512i middle = _mm512_and_si512(sum, _mm512_set1_epi32(-65536));
    const __m512i low = _mm512_mulhi_epu16(sum, multiplier);
    const __m512i product = _mm512_add_epi32(_mm512_add_epi32(high, middle), low);
    const __m512i rounded = _mm512_srav_epi32(_mm512_add_epi32(product, half), shift);
    if (!ties)
        return rounded;
    const __m512i rest = _mm512_and_si512(product, _mm512_sub_epi32(_mm512_add_epi32(half, half), one));
    const __m512i not_half = _mm512_or_si512(_mm512_xor_si512(rest, half), _mm512_mullo_epi16(sum, multiplier));
    const __mmask16 tie = _mm512_testn_epi32_mask(not_half, not_half);
    return _mm512_mask_sub_epi32(rounded, _mm512_mask_test_epi32_mask(tie, rounded, one), rounded, one);
}

/* Eight sums in 64 bits. */
INLINE __m256i rescale_eight(__m256i sums, __m256i multipliers, __m128i shifts, int ties)
{
    const __m512i one = _mm512_set1_epi64(1), shift = _mm512_cvtepu8_epi64(shifts);
    const __m512i half = _mm512_srli_epi64(_mm512_sllv_epi64(one, shift), 1);
    __m512i product = _mm512_mullo_epi64(_mm512_cvtepi32_epi64(sums), _mm512_cvtepu32_epi64(multipliers));
    if (ties) /* where the result would be even, half must not be reached */
        product = _mm512_sub_epi64(product, _mm512_andnot_si512(_mm512_srav_epi64(product, shift), one));
    return _mm512_cvtsepi64_epi32(_mm512_srav_epi64(_mm512_add_epi64(product, half), shift));
}

/* Storing under a mask would be one instruction, and takes several times as long on some processors. */
INLINE void store_bytes(uint8_t *output, int width, __m128i bytes)
{
    if (width == 16)
        _mm_storeu_si128((__m128i *)output, bytes);
    else if (width == 8)
        _mm_storel_epi64((__m128i *)output, bytes);
    else
        for (int c = 0; c < width; c++, bytes = _mm_srli_si128(bytes, 1))
            output[c] = (uint8_t)_mm_cvtsi128_si32(bytes);
}

/* "narrow", "ties" and "kind" are constants where this is called, so that the loop over pixels has no branch. */
enum { LINE, STEPPED_LINE, TABLE };

INLINE void finish_pixels(int narrow, int ties, int kind, const Convolution *layer, int channel, int width, int count,
                          int32_t sums[][LANES], uint8_t *output)
{
    const Function function = *layer->function;
    const int step = layer->out_step;
    const __mmask16 lanes = (__mmask16)((1u << width) - 1);
    const __m512i first = _mm512_set1_epi32(function.first), last = _mm512_set1_epi32(function.last);
    const __m512i slope = _mm512_set1_epi32(function.slope), offset = _mm512_set1_epi32(function.offset);
    const __m512i byte_step = _mm512_set1_epi32(function.step), half_step = _mm512_srli_epi32(byte_step, 1);
    const __m128i function_shift = _mm_cvtsi32_si128(function.shift), lift = _mm_cvtsi32_si128(layer->lift);
    const __m512i multiplier = _mm512_maskz_loadu_epi32(lanes, layer->multiplier + channel);
    const __m128i shift = _mm_maskz_loadu_epi8(lanes, layer->shift + channel);
    const __m512i rest_shift = _mm512_add_epi32(_mm512_cvtepu8_epi32(shift), _mm512_set1_epi32(layer->lift - 16));
    const __m512i half = _mm512_srli_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), rest_shift), 1);
    for (int p = 0; p < count; p++) {
        __m512i x, sum = _mm512_loadu_si512(sums[p]);
        if (narrow) {
            x = rescale_narrow(_mm512_sll_epi32(sum, lift), multiplier, rest_shift, half, ties);
        } else {
            const __m256i high = rescale_eight(_mm512_extracti64x4_epi64(sum, 1),
                                               _mm512_extracti64x4_epi64(multiplier, 1), _mm_srli_si128(shift, 8),
                                               ties);
            const __m256i low = rescale_eight(_mm512_castsi512_si256(sum), _mm512_castsi512_si256(multiplier), shift,
                                              ties);
            x = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        x = _mm512_min_epi32(_mm512_max_epi32(x, first), last);
        if (kind == TABLE) {
            const __m512i place = _mm512_sub_epi32(x, first), entry = _mm512_srl_epi32(place, function_shift);
            const __m512i rest = _mm512_sub_epi32(place, _mm512_sll_epi32(entry, function_shift));
            /* value, cut, value of the next entry and its cut, in four bytes */
            const __m512i found = _mm512_i32gather_epi32(entry, function.table, 2);
            const __m512i cut = _mm512_and_si512(_mm512_srli_epi32(found, 8), _mm512_set1_epi32(255));
            x = _mm512_mask_srli_epi32(found, _mm512_cmpge_epi32_mask(rest, cut), found, 16);
        } else {
            const __m512i y = _mm512_sra_epi32(_mm512_add_epi32(_mm512_mullo_epi32(x, slope), offset), function_shift);
            const __m512i above = _mm512_sub_epi32(_mm512_mullo_epi32(y, byte_step), x);
            const __mmask16 between = kind == STEPPED_LINE ? _mm512_cmpeq_epi32_mask(above, half_step) : 0;
            x = _mm512_mask_and_epi32(y, between, y, _mm512_set1_epi32(~1));
        }
        store_bytes(output + p * step, width, _mm512_cvtepi32_epi8(x));
    }
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    const int kind = layer->function->table ? TABLE : layer->function->step ? STEPPED_LINE : LINE;
    const int form = 6 * layer->narrow + 3 * layer->ties + kind;
    switch (form) {
#define FORM(narrow, ties, kind) \
    case 6 * narrow + 3 * ties + kind: \
        finish_pixels(narrow, ties, kind, layer, channel, width, count, sums, output); \
        break;
#define KINDS(narrow, ties) FORM(narrow, ties, LINE) FORM(narrow, ties, STEPPED_LINE) FORM(narrow, ties, TABLE)
        KINDS(0, 0) KINDS(0, 1) KINDS(1, 0) KINDS(1, 1)
    }
}
