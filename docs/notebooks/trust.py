# %% [markdown]
# # trust
# text

# %%
x = 1
