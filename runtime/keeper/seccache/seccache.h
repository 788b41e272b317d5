#ifndef SECCACHE_H
#define SECCACHE_H

#define SECCACHE_MAGIC "pausaF1\n"
#define SECCACHE_MAGIC_SIZE 8

void seccache_record(int fd);
int seccache_linked(void);

#endif
