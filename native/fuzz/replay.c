/* Runs a harness on files, without libFuzzer: `replay FILE...` */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int count, char **paths) {
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(paths[i], "rb");
        uint8_t *data = malloc(1 << 20);
        if (file == NULL || data == NULL) {
            fprintf(stderr, "cannot read %s\n", paths[i]);
            return 2;
        }
        size_t size = fread(data, 1, 1 << 20, file);
        fclose(file);
        /* As long as it is, so that the sanitizer sees what reads past it. */
        uint8_t *exact = realloc(data, size ? size : 1);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    printf("%d inputs\n", count - 1);
    return 0;
}
